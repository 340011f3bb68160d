"""Which packing each tensor gets, and how it is quantised."""
