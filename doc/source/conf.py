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

from typing import Any

from cliff import sphinxext

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxext',
    'cliff.sphinxext',
]

project = 'nova-kvm-ext'
copyright = 'nova-kvm-ext contributors'
master_doc = 'index'
pygments_style = 'native'

html_theme = 'openstackdocs'
openstackdocs_pdf_link = False
openstackdocs_auto_name = False

# Option names such as --image must not get a dash.
smartquotes = False

# The command in front of those that cliff.sphinxext documents, and the
# package that is no plugin of another.
autoprogram_cliff_application = 'nova-kvm-ext'
autoprogram_cliff_app_dist_name = 'nova-kvm-ext'

_format_parser = sphinxext._format_parser


def _format_with_defaults(parser: Any) -> Any:
    """Expand %(default)s, which cliff.sphinxext leaves as it is."""
    for action in parser._actions:
        if action.help:
            action.help %= dict(vars(action), prog=parser.prog)
    return _format_parser(parser)


sphinxext._format_parser = _format_with_defaults
