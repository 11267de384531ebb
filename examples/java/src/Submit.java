import com.google.rpc.BadRequest;
import dev.herald.v1.PostServiceGrpc;
import dev.herald.v1.SubmitPostRequest;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.concurrent.TimeUnit;

/** Submits one post and prints its id: Submit HOST:PORT */
public final class Submit {
  public static void main(String[] arguments) throws Exception {
    var channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    var posts = PostServiceGrpc.newBlockingStub(channel).withDeadlineAfter(10, TimeUnit.SECONDS);
    var request = SubmitPostRequest.newBuilder().setAuthorId("107").setText("hello from Java").build();
    System.out.println("accepted as post " + posts.submitPost(request).getPostId());

    // An error has its reason and the invalid fields as details.
    try {
      posts.submitPost(SubmitPostRequest.newBuilder().setAuthorId("107").build());
    } catch (StatusRuntimeException error) {
      for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(BadRequest.class)) {
          for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            System.out.println("refused: " + violation.getField() + " " + violation.getDescription());
          }
        }
      }
    }
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
  }
}
