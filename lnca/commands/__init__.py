"""The subcommands of ``lnca``.

Each module has a function ``main(arguments, prog)``, which imports slow packages after parsing its arguments.
"""
