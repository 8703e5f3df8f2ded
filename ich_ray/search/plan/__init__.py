"""What a search would do and take, before it runs."""
