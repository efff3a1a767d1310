package rpc

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

// maxRetryAfter bounds what RetryAfter believes: a peer that is out of its mind
// keeps nobody away for long.
const maxRetryAfter = 30 * time.Second

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
