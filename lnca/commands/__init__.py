"""The subcommands of ``lnca``.

Each module has a function ``main(arguments, prog)`` and imports what is slow to import after parsing its arguments.
"""
