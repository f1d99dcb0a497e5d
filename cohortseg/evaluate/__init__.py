"""The toolbox protocol and the clinical reading over a split, or over maps that others published."""
