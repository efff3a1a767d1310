package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"
)

// pacedConnections is over how many connections a paced load goes to each target.
const pacedConnections = 4

// startPacedLoad begins a load of rps requests per second in all through a proxy, GETs
// of the targets in turn. It costs a tenth of what startLoad does: a connection is a
// goroutine that writes the same bytes again and again. Who is late catches up, so that
// a pause of the machine is no pause of the load.
func startPacedLoad(t *testing.T, proxy string, targets []string, rps int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, done: make(chan struct{})}
	at, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	n := pacedConnections * len(targets)
	every := time.Duration(n) * time.Second / time.Duration(rps)
	for i := range n {
		target, err := url.Parse(targets[i%len(targets)])
		if err != nil {
			t.Fatal(err)
		}
		c := &pacedClient{proxy: at.Host, request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target.Host)}
		wg.Go(func() { l.pace(ctx, c, every, every*time.Duration(i)/time.Duration(n)) })
	}
	go func() { defer close(l.done); wg.Wait() }()
	t.Cleanup(func() { cancel(); <-l.done })
	return l
}

// pace sends a request every so often, the first after a while.
func (l *load) pace(ctx context.Context, c *pacedClient, every, after time.Duration) {
	defer c.close()
	timer := time.NewTimer(after)
	defer timer.Stop()
	for next := time.Now().Add(after); ; next = next.Add(every) {
		if wait := time.Until(next); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		} else if ctx.Err() != nil {
			return
		}
		l.count(c.get())
	}
}

func (l *load) count(err error) {
	l.sent.Add(1)
	if err == nil {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) < 10 {
		l.failures = append(l.failures, fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err))
	}
}

// pacedClient has one connection.
type pacedClient struct {
	proxy   string
	request []byte
	conn    net.Conn
	in      *bufio.Reader
	used    bool // for a request before
}

// errUnused: a kept connection was closed before an answer began, so that the request
// may be sent again (RFC 9110, section 9.2.2), as every client does.
var errUnused = errors.New("a kept connection was closed")

func (c *pacedClient) get() error {
	err := c.once()
	if errors.Is(err, errUnused) {
		err = c.once()
	}
	return err
}

func (c *pacedClient) once() error {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.proxy, 5*time.Second)
		if err != nil {
			return err
		}
		c.conn, c.in, c.used = conn, bufio.NewReader(conn), false
	}
	reused := c.used
	c.used = true
	_ = c.conn.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := c.conn.Write(c.request); err != nil {
		return c.broken(reused, err)
	}
	if _, err := c.in.Peek(1); err != nil {
		return c.broken(reused && !errors.Is(err, os.ErrDeadlineExceeded), err)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return c.broken(false, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.broken(false, err)
	}
	if resp.Close {
		c.close()
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %q %v", resp.Status, body, resp.Header)
	}
	return nil
}

func (c *pacedClient) broken(unused bool, err error) error {
	c.close()
	if unused {
		return fmt.Errorf("%w: %w", errUnused, err)
	}
	return err
}

func (c *pacedClient) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}
