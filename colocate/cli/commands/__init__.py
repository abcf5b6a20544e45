"""The commands and what each hands on to. Heavy imports happen inside the command that needs them."""
