"""The experiment harness, comparisons of methods, the demo, and reports with tables and plots."""
