"""Images in shards: tar files or Parquet files that hold thousands of images each, on a disk or in object storage.

`finding` tells what is there, `stores` reads bytes of files wherever they lie, `tars` and `parquets` know the two
formats, `index` is what we write beside shards of ours, `encoded` gives images their bytes, `order` shuffles them,
`packing` writes them.
"""
