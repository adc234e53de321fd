"""What pages show of the work: rows read by few bounded queries, and what is derived from them and `now`."""
