"""What was measured, and the benchmark that measures speed."""
