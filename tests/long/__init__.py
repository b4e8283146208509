"""Long forms of tests: run by hand, in hours, with the same code that the tests run in seconds."""
