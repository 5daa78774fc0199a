"""Says what a clip shows and whether its sound belongs to it, by classical analysis: nothing here is learned."""
