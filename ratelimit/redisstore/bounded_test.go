package redisstore

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

func TestAnswersWithinBounds(t *testing.T) {
	for name, stream := range map[string]string{
		"all kinds":       "+OK\r\n-ERR x\r\n:1\r\n_\r\n,1.5\r\n#t\r\n(12345678901234567890\r\n$3\r\na\nb\r\n$-1\r\n*-1\r\n*0\r\n=7\r\ntxt:abc\r\n!3\r\nERR\r\n",
		"lists":           "*2\r\n*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n$0\r\n\r\n+OK\r\n",
		"HELLO":           "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*0\r\n",
		"many lists":      strings.Repeat("*1\r\n:1\r\n", 100),
		"deep as allowed": strings.Repeat("*1\r\n", maxNesting) + ":1\r\n" + strings.Repeat("*1\r\n", maxNesting) + ":1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			var whole, bytewise answers
			if err := whole.follow([]byte(stream)); err != nil {
				t.Error(err)
			}
			for i := range len(stream) {
				if err := bytewise.follow([]byte{stream[i]}); err != nil {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
			if len(whole.open)+whole.skip+len(whole.line) > 0 {
				t.Errorf("something is left open: %+v", whole)
			}
		})
	}
}

// announcements are answers that cost a client which believes them its life.
func announcements() map[string]string {
	return map[string]string{
		"a list of a thousand million": "*1000000000\r\n",
		"a map":                        "%1000000000\r\n",
		"a text":                       "$1000000000\r\n",
		"a negative length":            "*-2\r\n",
		"not a number":                 "*1e9\r\n",
		"a streamed list":              "*?\r\n",
		"lists in lists":               strings.Repeat("*1\r\n", maxNesting+1),
		"an endless line":              "+" + strings.Repeat("x", maxText+1),
		"an attribute":                 "|1\r\n+a\r\n+b\r\n:1\r\n",
		"a push":                       ">1\r\n+a\r\n",
		"another protocol":             "HTTP/1.1 400 Bad Request\r\n",
	}
}

func TestAnswersOutOfBounds(t *testing.T) {
	for name, stream := range announcements() {
		t.Run(name, func(t *testing.T) {
			if err := new(answers).follow([]byte(stream)); !errors.Is(err, errUnbounded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestMaliciousRedis: whatever a Redis announces is an error of the decision.
func TestMaliciousRedis(t *testing.T) {
	for name, stream := range announcements() {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer func() { _ = c.Close() }()
						if _, err := bufio.NewReader(c).ReadByte(); err == nil {
							_, _ = io.WriteString(c, stream)
							_, _ = io.Copy(io.Discard, c)
						}
					}()
				}
			}()
			s, err := New(Options{Address: l.Addr().String(), Timeout: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			proctest.Background(t, s.Run)
			u := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1}}
			if err := s.Decide(t.Context(), time.Now(), u, make([]limit.Outcome, 1)); !errors.Is(err, errUnbounded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestOtherCallersThanAsked: a Redis that tells of fewer callers of a table than it is
// asked for, or of more, is not believed.
func TestOtherCallersThanAsked(t *testing.T) {
	for _, answer := range []string{"*0\r\n", "*1\r\n$1\r\n5\r\n", "*3\r\n$1\r\n5\r\n$1\r\n6\r\n$1\r\n7\r\n"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go tell(c, answer)
			}
		}()
		p, err := OpenPlans(Options{Address: l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		if values, err := p.Get(t.Context(), "t", []string{"alice", "bob"}); err == nil || !strings.Contains(err.Error(), "answers for 2 callers") {
			t.Errorf("%q: %v, %v", answer, values, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// tell answers HMGET with this.
func tell(c net.Conn, values string) {
	defer func() { _ = c.Close() }()
	for in := bufio.NewReader(c); ; {
		name, err := command(in)
		if err != nil {
			return
		}
		said := "+OK\r\n"
		switch strings.ToLower(name) {
		case "hmget":
			said = values
		case "hello":
			said = "-ERR unknown command\r\n"
		}
		if _, err := io.WriteString(c, said); err != nil {
			return
		}
	}
}

// TestNoMoreThanAsked: a Redis cannot grant a share that nobody asked for, nor more
// than a limit has.
func TestNoMoreThanAsked(t *testing.T) {
	j := &job{uses: []limit.Use{{Limit: storetest.Sliding(t, 10, time.Minute), Hits: 2, Want: 7}}, outcomes: make([]limit.Outcome, 1)}
	for _, answer := range [][]int64{{0, 1 << 62, 0, 0, 1 << 62, 1}, {7, -5, 0, 0, 1<<63 - 1, -1}} {
		if err := j.fill(answer); err != nil {
			t.Fatal(err)
		}
		if out := j.outcomes[0]; out.Taken > 7 || out.Remaining > 10 {
			t.Errorf("%v gives %+v", answer, out)
		}
	}
	for _, answer := range [][]int64{nil, {1}, {0, 1, 0, 0, 1}, make([]int64, 11)} {
		if err := j.fill(answer); err == nil {
			t.Errorf("%v is no answer", answer)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	for _, stream := range announcements() {
		f.Add([]byte(stream))
	}
	f.Add([]byte("*2\r\n:1\r\n$1\r\na\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var a answers
		_ = a.follow(stream)
		if len(a.open) > maxNesting || len(a.line) > maxText || a.skip > maxText+2 {
			t.Errorf("out of bounds: %d open, a line of %d, %d to come", len(a.open), len(a.line), a.skip)
		}
	})
}
