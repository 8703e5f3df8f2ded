"""Messages to people who are not there: where they go, and a thread that sends them."""
