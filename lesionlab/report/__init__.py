"""The report: one page of what the stages wrote, and nothing that they did not."""
