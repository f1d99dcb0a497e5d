"""Recipes side by side: every row of the paper's table 2 trained and scored on the same folds, with paired gains."""
