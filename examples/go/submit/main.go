// Submits one post and prints its id: submit HOST:PORT
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	heraldv1 "herald.dev/gen/go/herald/v1"
)

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	posts := heraldv1.NewPostServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	response, err := posts.SubmitPost(ctx, &heraldv1.SubmitPostRequest{AuthorId: "107", Text: "hello from Go"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("accepted as post %d\n", response.PostId)

	// An error has its reason and the invalid fields as details.
	_, err = posts.SubmitPost(ctx, &heraldv1.SubmitPostRequest{AuthorId: "107"})
	for _, detail := range status.Convert(err).Details() {
		if request, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range request.FieldViolations {
				fmt.Printf("refused: %s %s\n", violation.Field, violation.Description)
			}
		}
	}
}
