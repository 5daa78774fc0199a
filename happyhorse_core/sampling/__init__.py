"""From noise to clean latents: schedule, solvers, guidance and the loop that joins them."""
