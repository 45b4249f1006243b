"""What one update, one action and one evaluation cost, beside how others would have written them."""
