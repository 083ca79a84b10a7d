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

# The metadata is in pyproject.toml. Distributions build with a pbr older than
# 7.1, Debian 13 with 6.1.1, which finds version and dependencies only where a
# setup.py asks for pbr: without this file the package has version 0.0.0.

import setuptools

setuptools.setup(pbr=True)
