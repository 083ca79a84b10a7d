#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""The program ``nova-kvm-ext``, which answers ``host health`` without cliff.

The import of cliff and its dependencies takes ten times as long as a probe may
take. So this module imports only what ``host health`` needs.
"""

from __future__ import annotations

import gc
import sys

from nova_kvm_ext.cmd import quick


def main(argv: list[str] | None = None) -> int:
    """Run a command; see :mod:`nova_kvm_ext.cmd.main`.

    :param argv: None for those of this process, which ends with the command
    :returns: its exit code
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:2] == ['host', 'health']:
        code = quick.run(words[2:])
        if code is not None:
            return code
    if argv is None:
        # A process of a second: the collector would look at what has been
        # imported again and again, and once more at the end.
        gc.set_threshold(50_000)
    try:
        from nova_kvm_ext.cmd import main as commands
        return commands.main(words)
    finally:
        if argv is None:
            gc.freeze()


if __name__ == '__main__':
    sys.exit(main())
