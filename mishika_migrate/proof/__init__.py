"""What is compared, and what a difference means: pure functions of what both servers say."""
