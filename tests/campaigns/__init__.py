"""Long runs of what the suite only samples; ``scripts/campaign`` starts them."""
