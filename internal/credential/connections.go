package credential

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// reconnectRest is how long reconnect leaves new connections alone.
const reconnectRest = time.Second

// unary connects anew when a service does not take the certificate of a connection.
func (s *Source) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if status.Code(err) == codes.Unauthenticated {
		s.reconnect()
	}
	return err
}

// reconnect ends the connections that Dial's clients have, which make new ones with
// the certificate of now. It is for when a service does not take the certificate of
// a connection any more: one that has expired while the machine slept, say. Streams
// break off. Soon after the last time it does nothing.
func (s *Source) reconnect() {
	now := time.Now()
	s.cutMu.Lock()
	rest := now.Sub(s.cut) < reconnectRest
	if !rest {
		s.cut = now
	}
	s.cutMu.Unlock()
	if !rest {
		s.dialed.Close(func([]*x509.Certificate) bool { return true })
	}
}
