"""What benchmarks of one family of tools share, as none imports another: how the tool is called, what it prints."""
