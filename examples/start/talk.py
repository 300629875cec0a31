import json

from websockets.sync.client import connect

with connect("ws://127.0.0.1:8000/sign/") as socket:
    socket.send(json.dumps({"name": "Ada", "text": "Hello"}))
    print(socket.recv())
