"""The subcommands of `hf-blemo`, one file each; everything heavy is imported where it is needed."""
