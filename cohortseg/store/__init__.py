"""What lies on disk in an output folder: masks in Zarr, tables in Parquet, and their schemas."""
