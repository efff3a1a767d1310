package redisstore

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/writ-mesh/writ/internal/listen"
)

const (
	// reloadEvery is how old the picture of a cluster may be before it is asked for
	// again: a master that is gone says nothing of who took its place.
	reloadEvery = 250 * time.Millisecond
	// searchEvery is how often at most it is asked for because a master did not answer: the
	// servers need a second or two to make another one, and each of them knows it at once.
	searchEvery = 20 * time.Millisecond
	// redirects is how often a command follows a slot that has moved.
	redirects = 3
	// maxBackoff is how long it waits before it does.
	maxBackoff = 20 * time.Millisecond
)

// Sentinel says which processes know who the master is.
type Sentinel struct {
	// Master is the name that they know it by.
	Master string
	// Addresses are host:port of some of them.
	Addresses []string
	Username  string
	Password  string
}

// client makes the client of the topology that is asked for.
func client(o Options) (redis.UniversalClient, error) {
	given := 0
	for _, is := range []bool{o.Address != "", o.Sentinel.Master != "" || len(o.Sentinel.Addresses) > 0, len(o.Cluster) > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("redis: want either an address, or sentinels, or a cluster")
	}
	switch {
	case o.Address != "":
		return single(o)
	case len(o.Cluster) > 0:
		return cluster(o)
	default:
		return sentinel(o)
	}
}

// patience is how long a worker waits for Redis: whoever waits longer shall have the
// answer.
func (o *Options) patience() time.Duration { return max(ioTimeout, o.Timeout) }

func single(o Options) (redis.UniversalClient, error) {
	if err := listen.Valid(o.Address); err != nil {
		return nil, fmt.Errorf("redis address: %w", err)
	}
	network, addr := "tcp", o.Address
	if path, ok := listen.Unix(o.Address); ok {
		network, addr = "unix", path
	}
	options := &redis.Options{
		Network: network, Addr: addr, Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
		DialTimeout: time.Second, ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		DialerRetries: 1, MaxRetries: -1, // trying again is for who decides what a failure means
		PoolSize: o.Workers, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	options.Dialer = dialer(options)
	return redis.NewClient(options), nil
}

// sentinel makes a client that asks the sentinels for the master at each new
// connection, and ends those to the old one when they tell of a new one, or when it
// says that it is read-only. A connection has time for a sentinel that hangs, as one does
// that shares the master's machine: it is asked twice, then the others are.
func sentinel(o Options) (redis.UniversalClient, error) {
	if o.Sentinel.Master == "" || len(o.Sentinel.Addresses) == 0 {
		return nil, errors.New("redis sentinel: want the master's name and addresses")
	}
	if err := hosts("sentinel", o.Sentinel.Addresses); err != nil {
		return nil, err
	}
	return redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: o.Sentinel.Master, SentinelAddrs: o.Sentinel.Addresses,
		SentinelUsername: o.Sentinel.Username, SentinelPassword: o.Sentinel.Password,
		Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
		Dialer:      dialer(&redis.Options{DialTimeout: ioTimeout, TLSConfig: o.TLS}),
		Protocol:    2, // what sentinels push comes as plain lists
		DialTimeout: 5 * o.patience(), ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		DialerRetries: 1, MaxRetries: -1, PoolSize: o.Workers, DisableIdentity: true,
	}), nil
}

func cluster(o Options) (redis.UniversalClient, error) {
	if o.DB != 0 {
		return nil, errors.New("redis cluster: has no databases but 0")
	}
	if err := hosts("cluster", o.Cluster); err != nil {
		return nil, err
	}
	return redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: o.Cluster, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
		Dialer:   dialer(&redis.Options{DialTimeout: ioTimeout, TLSConfig: o.TLS}),
		Protocol: 2, MaxRedirects: redirects, MinRetryBackoff: time.Millisecond, MaxRetryBackoff: maxBackoff,
		ClusterStateReloadInterval: reloadEvery, DisableRoutingPolicies: true,
		DialTimeout: ioTimeout, ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		DialerRetries: 1, MaxRetries: -1, PoolSize: o.Workers, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}), nil
}

func hosts(what string, addresses []string) error {
	for _, a := range addresses {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return fmt.Errorf("redis %s: %q is not host:port", what, a)
		}
	}
	return nil
}
