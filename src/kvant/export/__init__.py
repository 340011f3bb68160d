"""Writing models in the formats runtimes load: one folder a target."""
