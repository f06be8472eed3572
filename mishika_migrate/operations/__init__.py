"""What the commands do: the only home of tenacity. Imports pg, the decisions and the words."""
