"""The command line as a module: ``python -m spin_composer`` is ``spin-composer``."""

from __future__ import annotations

from spin_composer.cli import main

if __name__ == "__main__":
    main()
