"""Submits one post and prints its id: submit.py HOST:PORT"""

import sys
import uuid

import grpc
from herald.v1 import post_pb2, post_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    posts = post_pb2_grpc.PostServiceStub(channel)
    request = post_pb2.SubmitPostRequest(
        request_id=str(uuid.uuid4()),  # idempotency key: a retry with the same id creates no second post
        author_id="107",
        text="hello from Python",
    )
    response = posts.SubmitPost(request, timeout=10)
    print(f"accepted as post {response.post_id}")
