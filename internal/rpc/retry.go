package rpc

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// maxRetryAfter bounds what RetryAfter believes: a peer that is out of its mind
// keeps nobody away for long.
const maxRetryAfter = 30 * time.Second

// Exhausted is for a caller who has used up what he may have for now:
// RESOURCE_EXHAUSTED, with the time after which to try again (google.rpc.RetryInfo).
func Exhausted(wait time.Duration, format string, args ...any) error {
	st := status.New(codes.ResourceExhausted, fmt.Sprintf(format, args...))
	detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil { // the detail is ours and can be marshalled
		return st.Err()
	}
	return detailed.Err()
}

// RetryAfter says how long the sender of err asks to be left alone, at most 30 s; 0
// if he does not. Callers wait that long or longer, each another time.
func RetryAfter(err error) time.Duration {
	st, ok := status.FromError(err)
	if !ok {
		return 0
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return min(max(info.GetRetryDelay().AsDuration(), 0), maxRetryAfter)
		}
	}
	return 0
}
