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
"""A stand-in for Placement, as far as nova-compute asks it for its own host.

A program of the standard library, which runs inside a root. It keeps what it
is given in memory and knows nobody. Without it a nova-compute starts as well,
and logs an error a minute.
"""

from http import server
import json
import re
from typing import Any

PORT = 8778
_PROVIDER = re.compile(r'/resource_providers/([^/?]+)(?:/([a-z]+))?$')


class Handler(server.BaseHTTPRequestHandler):
    """https://docs.openstack.org/api-ref/placement/"""

    protocol_version = 'HTTP/1.1'
    providers: dict[str, dict[str, Any]] = {}
    parts: dict[tuple[str, str], dict[str, Any]] = {}

    def _answer(self, body: Any, code: int = 200) -> None:
        data = b'' if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _read(self) -> Any:
        size = int(self.headers.get('Content-Length') or 0)
        return json.loads(self.rfile.read(size) or '{}')

    def _part(self, uuid: str, part: str) -> dict[str, Any]:
        empty: dict[str, Any] = {
            'allocations': {}, 'inventories': {}, 'aggregates': [],
            'traits': []}
        return {part: empty.get(part, []), 'resource_provider_generation':
                self.providers[uuid]['generation'],
                **self.parts.get((uuid, part), {})}

    def do_GET(self) -> None:
        path, _, query = self.path.partition('?')
        if path == '/':
            self._answer({'versions': [{
                'id': 'v1.0', 'min_version': '1.0', 'max_version': '1.39',
                'status': 'CURRENT',
                'links': [{'rel': 'self', 'href': ''}]}]})
        elif path == '/resource_providers':
            wanted = re.search('in_tree=([^&]+)', query)
            self._answer({'resource_providers': [
                one for uuid, one in self.providers.items()
                if wanted is None or wanted[1] == uuid]})
        elif path == '/traits':
            self._answer({'traits': []})
        elif (found := _PROVIDER.match(path)) and found[1] in self.providers:
            self._answer(self._part(found[1], found[2]) if found[2] else
                         self.providers[found[1]])
        else:
            self._answer({'errors': []}, 404)

    def do_POST(self) -> None:
        body = self._read()
        if self.path.startswith('/resource_providers'):
            uuid = body['uuid']
            self.providers[uuid] = {
                'uuid': uuid, 'name': body['name'], 'generation': 0,
                'parent_provider_uuid': None, 'root_provider_uuid': uuid,
                'links': []}
            self._answer(self.providers[uuid])
        else:
            self._answer(None, 204)

    def do_PUT(self) -> None:
        body = self._read()
        found = _PROVIDER.match(self.path)
        if not found or not found[2]:
            self._answer(None, 201)  # a trait of our own
            return
        uuid, part = found[1], found[2]
        self.providers[uuid]['generation'] += 1
        body.pop('resource_provider_generation', None)
        self.parts[uuid, part] = body
        self._answer(self._part(uuid, part))

    def do_DELETE(self) -> None:
        self._answer(None, 204)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == '__main__':
    server.ThreadingHTTPServer(
        ('127.0.0.1', PORT), Handler).serve_forever()
