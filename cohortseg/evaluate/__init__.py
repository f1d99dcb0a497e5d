"""The toolbox protocol and clinical measures, over a split or over published maps."""
