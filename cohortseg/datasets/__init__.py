"""Training data: COVID-SemiSeg or any folders, in canonical form, augmented and drawn in batches."""
