"""The page of inference/demo.py in a real browser."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lnca_arch.networks.baselines import NAFNet
from lnca_restore import Restorer
from lnca_restore.pretrained import save_network

DEMO = Path(__file__).parents[2] / 'inference' / 'demo.py'
BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
PATIENCE = 120  # seconds

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason='needs Chromium: apt-get install chromium chromium-driver'
)


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp('demo')
    with open(temporary / 'log', 'w') as log:
        server = subprocess.Popen(
            [sys.executable, DEMO, '--port', str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={'PATH': '/usr/bin:/bin', 'HOME': str(temporary), 'TMPDIR': str(temporary)},
        )
        url = f'http://127.0.0.1:{port}/'
        try:
            _wait_for(url, server, temporary / 'log')
            yield url
        finally:
            kept = list(temporary.glob('lnca_demo_*'))
            server.terminate()
            server.wait(30)
    # Readable for nobody else, and nothing stays of what was uploaded and shown.
    assert len(kept) == 1 and not list(temporary.glob('lnca_demo_*'))


def _wait_for(url, server, log):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            requests.get(url, timeout=5)
            return
        except requests.RequestException:
            time.sleep(0.5)
    pytest.fail(f'the page did not start: {log.read_text()}')


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / 'downloads'
    folder.mkdir()
    return folder


@pytest.fixture
def browser(address, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        '--window-size=1400,1000',
    ):
        options.add_argument(argument)
    options.add_experimental_option('prefs', {'download.default_directory': str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(address)
        until(driver, lambda: driver.find_element(By.ID, 'restore').is_displayed())
        yield driver
    finally:
        driver.quit()


def until(driver, found):
    """Wait until a function returns something, and return that; the page may replace elements meanwhile."""
    return WebDriverWait(driver, PATIENCE, ignored_exceptions=[Exception]).until(lambda _: found())


def pictures(driver):
    """Return the addresses of the pictures before and after, an empty list while there are none."""
    return [image.get_attribute('src') for image in driver.find_elements(By.CSS_SELECTOR, '#picture img')]


def upload(driver, path):
    driver.find_element(By.CSS_SELECTOR, '#upload input[type=file]').send_keys(str(path))
    # What is dropped is not damaged further.
    chosen = '#damage input:checked'
    until(driver, lambda: driver.find_element(By.CSS_SELECTOR, chosen).get_attribute('value') == 'nothing')


def read(url, path):
    path.write_bytes(requests.get(url, timeout=30).content)
    return np.asarray(Image.open(path).convert('RGB'))


def test_a_photograph_is_restored_and_its_steps_are_shown(browser, downloads, tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / 'mine.png')
    upload(browser, tmp_path / 'mine.png')
    browser.find_element(By.ID, 'restore').click()
    before, after = until(browser, lambda: pictures(browser))
    np.testing.assert_array_equal(read(before, tmp_path / 'before.png'), photograph)
    restorer = Restorer.from_pretrained('denoise')  # the first of the list
    np.testing.assert_allclose(read(after, tmp_path / 'after.png'), restorer(photograph), atol=1)

    slider = browser.find_element(By.CSS_SELECTOR, '#steps input[type=range]')
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    until(browser, lambda: pictures(browser) and pictures(browser)[1] != after)
    until(browser, lambda: slider.get_attribute('value') == '24')

    def shown():
        found = read(pictures(browser)[1], tmp_path / 'shown.png').astype(int)
        return np.abs(found - restorer(photograph, steps=24)).max() <= 1

    until(browser, shown)
    browser.find_element(By.ID, 'download').click()
    (file,) = until(browser, lambda: list(downloads.glob('*.png')))
    assert file.name == 'restored_24_steps.png'
    np.testing.assert_allclose(np.asarray(Image.open(file)), restorer(photograph, steps=24), atol=1)


def test_an_example_is_damaged_and_restored(browser, tmp_path):
    browser.find_element(By.ID, 'restore').click()
    before, after = until(browser, lambda: pictures(browser))
    before, after = read(before, tmp_path / 'a.png'), read(after, tmp_path / 'b.png')
    assert before.shape == after.shape == (300, 451, 3)
    assert before.std() != after.std()


def test_a_broken_file_shows_a_message(browser, tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n and nothing more')
    upload(browser, tmp_path / 'broken.png')
    browser.find_element(By.ID, 'restore').click()
    message = until(browser, lambda: browser.find_element(By.CSS_SELECTOR, '[data-testid=toast-body]').text)
    assert 'This picture cannot be restored' in message
    assert 'broken.png: not a readable image' in message
    assert '/' not in message.partition('broken.png')[0]
    assert not pictures(browser)


def test_it_listens_to_this_computer_alone(address):
    port = int(address.rstrip('/').rpartition(':')[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {'127.0.0.1'}
    for other in others:
        with socket.socket() as attempt:
            attempt.settimeout(5)
            assert attempt.connect_ex((other, port)) != 0


def test_a_network_without_an_automaton_is_refused(fork_server, tmp_path):
    sizes = {'width': 4, 'enc_blk_nums': [1], 'dec_blk_nums': [1]}
    save_network(NAFNet(**sizes), {'type': 'NAFNet', **sizes}, tmp_path / 'net.safetensors')
    result = fork_server.run([DEMO, '--model', tmp_path / 'net.safetensors'])
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith('net.safetensors: NAFNet has no automaton to show')
