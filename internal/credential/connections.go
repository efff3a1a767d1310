package credential

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// reconnectRest is how long reconnect leaves new connections alone.
const reconnectRest = time.Second

// connections are those that Dial's clients have. Its lock is one of its own: who
// holds Source.mu may close connections.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	cut  time.Time // when reconnect closed them last
}

func (c *connections) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[net.Conn]struct{})
	}
	c.open[conn] = struct{}{}
}

func (c *connections) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

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
	c, now := &s.dialed, time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.cut) < reconnectRest {
		return
	}
	c.cut = now
	for conn := range c.open {
		_ = conn.Close() // who uses it hears of it
	}
	clear(c.open)
}

// tracked makes the connections of a source known to it.
type tracked struct {
	credentials.TransportCredentials

	dialed *connections
}

// ClientHandshake implements credentials.TransportCredentials.
func (t tracked) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	t.dialed.add(raw)
	return &connection{Conn: conn, raw: raw, dialed: t.dialed}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (t tracked) Clone() credentials.TransportCredentials {
	return tracked{t.TransportCredentials.Clone(), t.dialed}
}

// connection forgets itself when it is closed.
type connection struct {
	net.Conn

	raw    net.Conn
	dialed *connections
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.dialed.remove(c.raw)
	return c.Conn.Close()
}
