"""The benchmarks behind `ifru bench`: shapes, contenders, timing and the report."""
