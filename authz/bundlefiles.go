package authz

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

// filesState stands for the content of a bundle on this machine without reading it: the
// names, sizes and times of its files. It is another one each time for what does not say
// that much, such as a symbolic link, whose target changes by itself, or what is gone.
func filesState(path string) string {
	h := sha256.New()
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !d.IsDir() && !d.Type().IsRegular() {
			return fmt.Errorf("%s is no regular file", name)
		}
		// The time of the last change of any kind, which nobody can set back.
		_, err = fmt.Fprintf(h, "%q %d %d %d %d\n", name, stat.Ino, stat.Size, stat.Mtim.Nano(), stat.Ctim.Nano())
		return err
	})
	if err != nil {
		return time.Now().String()
	}
	return string(h.Sum(nil))
}
