"""Wire crewai-native into CrewAI when, and only when, a program imports CrewAI.

The line in ``crewai_native.pth`` imports this module at interpreter start-up. It must cost next
to nothing and must never fail: it only puts a finder in front of the import system, which answers
for the one name ``crewai`` and steps aside once that has been imported.
"""

import os
import sys


class _CrewAIFinder:
    """A meta-path finder for ``crewai`` alone: activates the host after the package has loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "crewai":
            return None
        # Ask the other finders, in their order. Somebody may only be looking whether CrewAI is
        # installed, so the finder stays until the package really executes.
        for finder in list(sys.meta_path):
            if finder is _CrewAIFinder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = getattr(spec.loader, "exec_module", None)
        if execute is None:
            return spec

        def exec_and_activate(module):
            execute(module)
            if module.__name__ != "crewai":
                return  # a loader that serves several modules, as a zip file's does
            vars(spec.loader).pop("exec_module", None)
            from crewai_native import _host

            # If this raises, the import of CrewAI has failed, and the finder stays for the next
            # attempt: a program that tries again must not run without what it asked for.
            _host.activate_on_import()
            if _CrewAIFinder in sys.meta_path:
                sys.meta_path.remove(_CrewAIFinder)

        # On this one loader instance: its class serves every other module too.
        spec.loader.exec_module = exec_and_activate
        return spec


if os.environ.get("CREWAI_NATIVE", "1").strip().lower() not in {"0", "false", "off", "no"}:
    sys.meta_path.insert(0, _CrewAIFinder)
