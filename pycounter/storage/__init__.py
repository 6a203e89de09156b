"""The checkpoint on disk: pages in RocksDB, recovery from them, the thread that folds the log into them."""
