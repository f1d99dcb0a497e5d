"""Output folders on disk: masks in Zarr, tables in Parquet, and their schemas."""
