// Package certfile has a server's certificate from files that somebody else renews.
package certfile

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookAgain is how often it is seen whether the files have changed, at most.
const lookAgain = time.Second

// Pair is a certificate and its key on disk. It is safe for concurrent use.
type Pair struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time
	looked  time.Time
}

// Open reads two PEM files: the certificate with its chain, and its key.
func Open(cert, key string, log *slog.Logger) (*Pair, error) {
	f := &Pair{cert: cert, key: key, log: log}
	return f, f.load()
}

// load reads both files. It needs f.mu, or to be alone.
func (f *Pair) load() error {
	stamp, err := f.times()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	f.current, f.stamp = &pair, stamp
	return nil
}

func (f *Pair) times() (stamp [2]time.Time, err error) {
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return stamp, fmt.Errorf("server certificate: %w", err)
		}
		stamp[i] = info.ModTime()
	}
	return stamp, nil
}

// Get implements tls.Config.GetCertificate. Files that cannot be read, or do not
// fit each other because one of them is being replaced, leave what was there.
func (f *Pair) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.looked) < lookAgain {
		return f.current, nil
	}
	f.looked = now
	if stamp, err := f.times(); err == nil && stamp == f.stamp {
		return f.current, nil
	}
	if err := f.load(); err != nil {
		f.log.Warn("a server goes on with its old certificate", slog.String("file", f.cert), slog.Any("error", err))
	}
	return f.current, nil
}
