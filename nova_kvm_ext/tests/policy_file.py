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

"""Has the policy file of Nova's tests parsed once, not for each test.

Nova's test cases write the same file again and parse it twice, in YAML, which
is the larger part of what a test of a driver costs. What is parsed, and what
comes of it, stay the same.
"""

import copy
import functools
from typing import Any

from oslo_policy import policy


def parse_once() -> None:
    """Keep what the files say, for the life of this process."""
    parsed = functools.lru_cache(maxsize=16)(policy.parse_file_contents)

    def parse_file_contents(data: str | bytes) -> Any:
        # The caller may change it.
        return copy.deepcopy(parsed(data))

    policy.parse_file_contents = parse_file_contents
