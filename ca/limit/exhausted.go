package limit

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// exhausted is for a caller who has used up what he may have for now:
// RESOURCE_EXHAUSTED, with the time after which to try again (google.rpc.RetryInfo).
func exhausted(wait time.Duration, format string, args ...any) error {
	st := status.New(codes.ResourceExhausted, fmt.Sprintf(format, args...))
	detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil { // the detail is ours and can be marshalled
		return st.Err()
	}
	return detailed.Err()
}
