package redisstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// deaf is a cluster of so many masters that do scripts and do not answer them.
func deaf(t *testing.T, masters int) (address string, done *atomic.Int64) {
	t.Helper()
	said := fmt.Sprintf("*%d\r\n", masters)
	listeners := make([]net.Listener, masters)
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		host, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = l
		said += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*3\r\n$%d\r\n%s\r\n:%s\r\n$3\r\nid%d\r\n",
			slots*i/masters, slots*(i+1)/masters-1, len(host), host, port, i)
	}
	done = new(atomic.Int64)
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c, said, done)
			}
		}()
	}
	return listeners[0].Addr().String(), done
}

func answer(c net.Conn, slots string, done *atomic.Int64) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReader(c)
	for {
		name, err := command(in)
		if err != nil {
			return
		}
		said := "+OK\r\n"
		switch strings.ToLower(name) {
		case "evalsha":
			done.Add(1)
			continue
		case "cluster":
			said = slots
		case "hello", "command":
			said = "-ERR unknown command\r\n"
		}
		if _, err := c.Write([]byte(said)); err != nil {
			return
		}
	}
}

// command reads one and gives its name.
func command(in *bufio.Reader) (name string, err error) {
	number := func() (int, error) {
		line, err := in.ReadString('\n')
		if err != nil || len(line) < 2 {
			return 0, errors.Join(err, io.ErrUnexpectedEOF)
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number()
	for i := range n {
		size, failed := number()
		text := make([]byte, max(size, 0)+len("\r\n"))
		if _, unread := io.ReadFull(in, text); failed != nil || unread != nil {
			return "", errors.Join(failed, unread)
		}
		if i == 0 {
			name = string(text[:size])
		}
	}
	return name, err
}

// TestClusterIsAskedOnce: what a master of a cluster does not answer is not sent to it
// again behind the back of who asked, for it may have done it.
func TestClusterIsAskedOnce(t *testing.T) {
	address, done := deaf(t, 1)
	s, err := New(Options{Cluster: []string{address}, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, s.Run)
	proctest.Until(t, 20*time.Second, "the cluster to be known", func() bool { return s.owners.Load() != nil })
	var given *unanswered
	asked := int64(0)
	proctest.Until(t, 30*time.Second, "the worker to give up", func() bool { // when it will not send it any more
		asked++
		err := s.Decide(t.Context(), time.Now(), []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 10, time.Hour), Hits: 1}}, make([]limit.Outcome, 1))
		if !errors.Is(err, ErrTimeout) || !errors.As(err, &given) {
			t.Fatalf("nobody answers: %v", err)
		}
		for range 100 {
			if given.Late(); given.known {
				return true
			}
			<-time.After(20 * time.Millisecond)
		}
		return false // it was too late before it was sent
	})
	if n := done.Load(); n > asked {
		t.Errorf("asked %d times, it was done %d times", asked, n)
	}
	if _, ok := given.Late(); ok {
		t.Error("an answer that never came")
	}
}

// TestNothingOfAPipelineIsRepeated: a pipeline goes to several masters if a slot has moved
// since, and to the one where it is now.
func TestNothingOfAPipelineIsRepeated(t *testing.T) {
	address, done := deaf(t, 3)
	s, err := New(Options{Cluster: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.client.Close() })
	pipe := s.client.Pipeline()
	for _, key := range []string{"b", "c", "a"} { // slots 3300, 7365 and 15495
		pipe.EvalSha(t.Context(), s.sha, []string{key})
	}
	if _, err := pipe.Exec(t.Context()); err == nil {
		t.Fatal("nobody answers")
	}
	if n := done.Load(); n > 3 {
		t.Errorf("three scripts were sent %d times", n)
	}
}
