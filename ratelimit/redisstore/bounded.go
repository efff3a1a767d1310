package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bounds of an answer. The largest that a Redis gives here is the script's, five
// integers for each of at most 256 limits, in a pipeline of which each is read by
// itself; HELLO answers a map of a dozen short texts.
const (
	// maxElements of one list or map.
	maxElements = 4096
	// maxText is the bytes of one text, or of one line.
	maxText = 64 << 10
	// maxNesting is how deep lists stand in lists.
	maxNesting = 8
)

// errUnbounded: Redis says what no Redis says to this program. The client library
// would reserve whatever memory the answer announces, and end the process.
var errUnbounded = errors.New("redis answered with more than it can have to say: is it Redis, and is the way to it safe (redis.tls)?")

// bounded reads along with the client library and ends the connection before the
// library believes a length or a nesting that is out of bounds
// (https://redis.io/docs/latest/develop/reference/protocol-spec/).
type bounded struct {
	net.Conn
	answers answers
	bad     error // the connection is over
}

// boundedSocket is bounded over a plain socket, whose end the client library sees
// by looking at the descriptor.
type boundedSocket struct {
	bounded
	syscall.Conn
}

// Read implements net.Conn. The library may go on after an error, as when it tries
// another way to log in: then there is only the error.
func (c *bounded) Read(p []byte) (int, error) {
	if c.bad != nil {
		return 0, c.bad
	}
	n, err := c.Conn.Read(p)
	if c.bad = c.answers.follow(p[:n]); c.bad != nil {
		_ = c.Close() // the error says why
		return 0, c.bad
	}
	return n, err
}

// dialer dials as the client library does. A server that is not reached is one that ends
// the connection: of failed dials the library tries the next one no sooner than a second
// after the one before, however soon a server is back or another one takes its place.
func dialer(o *redis.Options) func(context.Context, string, string) (net.Conn, error) {
	dial := redis.NewDialer(o)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return unreached{err}, nil //nolint:nilerr // the connection says so
		}
		if socket, ok := c.(syscall.Conn); ok {
			return &boundedSocket{bounded{Conn: c}, socket}, nil
		}
		return &bounded{Conn: c}, nil
	}
}

// unreached is a connection to nobody: whatever is done with it fails for the reason that
// the dial did.
type unreached struct{ err error }

// Read implements net.Conn.
func (c unreached) Read([]byte) (int, error) { return 0, c.err }

// Write implements net.Conn.
func (c unreached) Write([]byte) (int, error) { return 0, c.err }

// Close implements net.Conn.
func (unreached) Close() error { return nil }

// LocalAddr implements net.Conn.
func (unreached) LocalAddr() net.Addr { return new(net.TCPAddr) }

// RemoteAddr implements net.Conn.
func (unreached) RemoteAddr() net.Addr { return new(net.TCPAddr) }

// SetDeadline implements net.Conn.
func (unreached) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (unreached) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (unreached) SetWriteDeadline(time.Time) error { return nil }

// answers follows a stream of answers from one byte to the next.
type answers struct {
	line []byte // the begun line, with its type
	skip int    // bytes of a text that are still to come
	open []int  // elements still to come of each open list, the outermost first
}

func (a *answers) follow(p []byte) error {
	for len(p) > 0 {
		if a.skip > 0 {
			n := min(a.skip, len(p))
			a.skip -= n
			p = p[n:]
			continue
		}
		b := p[0]
		p = p[1:]
		if b != '\n' {
			if len(a.line) == maxText {
				return fmt.Errorf("%w (a line of more than %d bytes)", errUnbounded, maxText)
			}
			a.line = append(a.line, b)
			continue
		}
		if err := a.header(); err != nil {
			return err
		}
		a.line = a.line[:0]
	}
	return nil
}

// header takes in a whole line: a value of its own, or what says how much follows.
func (a *answers) header() error {
	line := a.line
	if len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	if len(line) == 0 {
		return fmt.Errorf("%w (an empty line)", errUnbounded)
	}
	per := 1
	switch line[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		a.ended()
		return nil
	case '$', '=', '!':
		n, err := length(line, maxText)
		if err != nil {
			return err
		}
		if n >= 0 {
			a.skip = n + len("\r\n")
		}
		a.ended()
		return nil
	case '%':
		per = 2
	case '*', '~':
	default:
		return fmt.Errorf("%w (an answer that begins with %q)", errUnbounded, line[0])
	}
	n, err := length(line, maxElements)
	if err != nil {
		return err
	}
	if n <= 0 {
		a.ended()
		return nil
	}
	if len(a.open) == maxNesting {
		return fmt.Errorf("%w (lists nested deeper than %d)", errUnbounded, maxNesting)
	}
	a.open = append(a.open, n*per)
	return nil
}

// ended counts a value that is complete, and the lists that are complete with it.
func (a *answers) ended() {
	for len(a.open) > 0 {
		last := len(a.open) - 1
		if a.open[last]--; a.open[last] > 0 {
			return
		}
		a.open = a.open[:last]
	}
}

// length reads the number behind the type; -1 is Redis's null.
func length(line []byte, most int) (int, error) {
	n, err := strconv.Atoi(string(line[1:]))
	if err != nil || n < -1 || n > most {
		return 0, fmt.Errorf("%w (%q, at most %d)", errUnbounded, line[:min(len(line), 24)], most)
	}
	return n, nil
}
