package bundleendpoint

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

// files is a server certificate on disk that somebody else renews.
type files struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time
	looked  time.Time
}

func openFiles(cert, key string, log *slog.Logger) (*files, error) {
	f := &files{cert: cert, key: key, log: log}
	return f, f.load()
}

// load reads both files. It needs f.mu, or to be alone.
func (f *files) load() error {
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

func (f *files) times() (stamp [2]time.Time, err error) {
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return stamp, fmt.Errorf("server certificate: %w", err)
		}
		stamp[i] = info.ModTime()
	}
	return stamp, nil
}

// get implements tls.Config.GetCertificate. Files that cannot be read, or do not
// fit each other because one of them is being replaced, leave what was there.
func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
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
		f.log.Warn("the bundle endpoint goes on with its old certificate", slog.Any("error", err))
	}
	return f.current, nil
}
